"""Reports on runs and launches: tables, plots and one page that holds both."""
