"""A run as one page: `report.html`, from the files that the run wrote, self-contained and of bounded size."""
