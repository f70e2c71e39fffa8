"""What runs in the child: standard library only, nothing of this package.

`main.py` is started as a script without the package on its path, so its
neighbours import each other by their bare names, and the parent reads only
`plain.py` and the text of `probe.py`.
"""
