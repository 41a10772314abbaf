"""Reports on runs and sweeps: tables, plots and pages."""
