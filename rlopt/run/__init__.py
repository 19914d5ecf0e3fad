"""A run from its config to its end: validate, launch, checkpoint, resume. It is the one package that sees a whole config."""
