"""The HTML report of a study: one page that needs no network and runs no text that it shows."""
