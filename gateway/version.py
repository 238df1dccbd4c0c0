"""The version of this build, read once: the metadata of a package is a file that is parsed at every look."""

from importlib.metadata import version

VERSION = version("moonshard")
