"""Everything that calls Ray: actors with deadlines, and runs as Ray jobs. It does not know what the actors do."""
