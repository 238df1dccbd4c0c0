"""The system under abuse: hostile grammars, damaged bodies, too much at once, and for long."""
