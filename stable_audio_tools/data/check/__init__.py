"""What a dataset really holds: every file decoded once, its faults named, the whole summed up.

``meters`` measures a stream of audio, ``measure`` a file, ``survey`` all files at once and resumably,
``captions`` what is known of each track; ``problems`` judges, ``summary`` and ``page`` tell.
"""
