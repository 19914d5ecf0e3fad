"""Policy objectives: one small file each, named like its YAML in `conf/algo/`. `core` says what an objective is."""
