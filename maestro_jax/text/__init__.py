"""Languages, and how their text is spelled, normalized and tokenized."""
