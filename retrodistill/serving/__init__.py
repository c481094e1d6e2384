"""An HTTP server for the systems of a job, an index, or a student: a JSON API and a page."""
