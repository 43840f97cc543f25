"""Other people's registration methods, each behind the two functions that `contract` describes.

What lies here runs in the Python that the peer is installed in, which need not have torch nor this library's other
requirements: these files import nothing but numpy, SimpleITK, the peer, and one another.
"""
