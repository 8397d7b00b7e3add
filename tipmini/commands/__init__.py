"""The commands of the command line, by what they need: adapters alone, or the laboratory too."""
