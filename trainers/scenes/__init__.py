"""Generated scenes: pictures whose every truth is known, and that truth in the official files of the data sets.

looks.py     the kinds of things, their colours and textures, as outlines in a unit square
scene.py     what is in a scene, drawn by chance from a seed, and which relations hold
drawing.py   the picture of a scene
asking.py    questions with answers, and their balance
saying.py    captions, referring expressions, hypotheses, statements about two scenes
files.py     the official files, of each data set in one of the *_files.py
making.py    a whole folder of them
"""
