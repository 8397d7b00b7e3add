"""What is declared, made and measured."""
