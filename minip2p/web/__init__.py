"""A page to look at attention and to edit pictures, and its server: the command `minip2p app` (extra `web`).

The page is plain HTML, CSS and JavaScript in `static/`. `app` has the addresses, `studio` does the model's work in the
thread of a `worker`, and `guard` decides which requests are answered at all.
"""
