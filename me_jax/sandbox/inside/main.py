"""The script the child interpreter is started with.

    python -s -S -P -X utf8 main.py FOLDER

It is kept small because a script is compiled again at every start.
"""

import sys

_HERE = __file__.rpartition('/')[0]

if __name__ == '__main__':
  sys.path.insert(0, _HERE)
  import session

  session.serve(sys.argv[1], _HERE)
