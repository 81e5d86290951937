"""Does the suite notice faults? ``make mutants`` plants them, one at a time, and runs the tests.

A fault is one small edit of a source, and the tests that own what it changes. It is planted in a
copy of the checkout. Where the tests turn red, they have noticed it. Where they stay green it has
survived: then the table has to say why nobody can notice it, or a test is missing.

  chosen.txt   faults that were chosen
  drawn.txt    faults that were drawn: ``python -m tests.mutants.draw`` draws them again
  faults.py    reads both
  edits.py     what can be drawn: every small edit of a source
  owners.py    which tests own a file
  scratch.py   the copy: plants, builds, runs
  __main__.py  the command
"""
