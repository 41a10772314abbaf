"""Text: vocabularies, templates and preprocessors."""
