// The buttons of the line below a figure or a table: copy its reference, a table with its cells.
const words = (cell) => cell.innerText.trim().replace(/\s+/g, " ").replaceAll("|", "\\|");
const line = (cells) => `| ${cells.join(" | ")} |`;

function markdown(table) {
  const [head, ...rows] = [...table.rows].map((row) => [...row.cells].map(words));
  return [head, head.map(() => "---"), ...rows].map(line).join("\n") + "\n\n";
}

document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("button.copied")) {
    const title = button.textContent;
    button.addEventListener("click", async () => {
      const table = button.closest("details").previousElementSibling.querySelector("table");
      const cells = table && button.dataset.form === "Markdown" ? markdown(table) : "";
      await navigator.clipboard.writeText(cells + button.dataset.text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = title), 1500);
    });
  }
});

// Paper is light.
let theme;
window.addEventListener("beforeprint", () => {
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
window.addEventListener("afterprint", () => (document.documentElement.dataset.theme = theme));
