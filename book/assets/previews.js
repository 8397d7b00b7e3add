// What a link leads to, shown while the pointer or the keyboard is on it. The previews are a part
// of the page (tipmini_lab/book/site/previews.py), so nothing is loaded. Escape closes.
const DELAY = 250;
const MARGIN = 8;

function place(box, link) {
  const at = link.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - box.offsetWidth - MARGIN);
  const below = at.bottom + MARGIN;
  const above = at.top - box.offsetHeight - MARGIN;
  box.style.left = `${Math.max(MARGIN, left)}px`;
  box.style.top = `${below + box.offsetHeight > innerHeight && above > 0 ? above : below}px`;
}

function preview(known) {
  const box = document.createElement("div");
  box.id = "preview";
  box.className = "preview bd-article";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  document.body.append(box);
  let timer, shown;

  const hide = () => {
    clearTimeout(timer);
    shown?.removeAttribute("aria-describedby");
    shown = undefined;
    box.hidden = true;
  };
  const show = async (link) => {
    hide();
    shown = link;
    box.innerHTML = known[link.getAttribute("href")];
    box.hidden = false;
    link.setAttribute("aria-describedby", "preview");
    place(box, link);
    if (box.querySelector(".math") && window.MathJax?.typesetPromise) {
      await MathJax.typesetPromise([box]);
      if (shown === link) place(box, link);
    }
  };
  const later = (act) => {
    clearTimeout(timer);
    timer = setTimeout(act, DELAY);
  };

  for (const link of document.querySelectorAll("article a.internal[href*='#']")) {
    if (!(link.getAttribute("href") in known)) continue;
    link.removeAttribute("title"); // it would be shown beside the preview
    link.addEventListener("mouseenter", () => later(() => show(link)));
    link.addEventListener("mouseleave", () => later(hide));
    link.addEventListener("focus", () => link.matches(":focus-visible") && show(link));
    link.addEventListener("blur", hide);
  }
  box.addEventListener("mouseenter", () => clearTimeout(timer));
  box.addEventListener("mouseleave", () => later(hide));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}

document.addEventListener("DOMContentLoaded", () => {
  const known = document.getElementById("previews");
  if (known) preview(JSON.parse(known.textContent));
});
