"""What the doctor and the report read from a run's files. It starts nothing and knows no worker."""
