"""How well the model that ships generates, and how well photographs are edited: cases, measurements and tables."""
