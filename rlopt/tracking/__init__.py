"""A run's files, metrics and loggers. It does not know how a metric is computed."""
