"""What runs measured, as tables, figures and a page; see `launch/report.py`."""
