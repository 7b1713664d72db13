"""What a dataset really holds: every file decoded once, its faults named, the whole summed up.

``meters`` measures a stream of audio, ``measure`` a file, ``survey`` all of them, resumably; ``known`` asks
what is said of each track. ``problems`` judges by ``kinds``, ``run`` puts it together; ``summary`` and
``page`` tell. ``table`` checks a list of tracks before any audio is there.
"""
