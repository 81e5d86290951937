"""Does the suite notice faults? ``make mutants`` plants them, one at a time, and runs the tests.

A fault is one small edit of a source, and the tests that own what it changes. It is planted in a
copy of the checkout. Red tests have noticed it; where they stay green it survived, and the table
has to say why nobody can notice it, or a test is missing.

  faults.py   the table: faults that were chosen, and with them those of drawn.json
  owners.py   which tests own a file
  draw.py     draws faults by a seed and writes drawn.json: ``python -m tests.mutants.draw``
  scratch.py  the copy: plants, builds, runs
  __main__.py the command
"""
