"""The typed configuration: schema, composition by Hydra, and errors in one line. It does not know how a key is used."""
