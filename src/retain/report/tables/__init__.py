"""The tables of a report, each a function from results to a grid."""
