"""Parts of `show_in_viewers.py`: what is required of whom, the browser, the pictures; and the pages that viewers run in."""
