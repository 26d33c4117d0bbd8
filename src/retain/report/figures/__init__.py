"""The pictures of a report, each a function from results to a figure of a given width."""
