"""Where people train: transformers, PEFT, Lightning, several processes; each loads its own only."""
