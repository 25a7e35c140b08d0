"""Pictures over HTTP: requests become jobs of one endless run, so that they share engine calls as a folder's images do.

``desk.py`` takes requests in and hands results out, ``service.py`` keeps the engine and the stages at work, ``app.py``
speaks HTTP, ``page/`` is for people. Starlette and uvicorn (the extra ``serve``) are imported in ``app.py`` alone.
"""
