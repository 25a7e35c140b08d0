"""Films: frames go through the stages as pictures do; time stamps, sound, subtitles and chapters pass untouched.

PyAV (the extra ``video``) is imported here and nowhere else, and this room is imported late. ``film.py`` says what a
file is, ``frames.py`` reads it, ``codecs.py`` writes it, ``segments.py`` keeps what is done, ``join.py`` puts it
together.
"""
