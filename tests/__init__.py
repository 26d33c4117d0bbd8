"""The tests, as one package, so that none of its folders takes the name of a module elsewhere."""
