"""The records that all packages exchange, and small tools for files, processes and errors. It knows no other package."""
