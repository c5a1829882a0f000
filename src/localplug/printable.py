"""Text from elsewhere, made safe to show: names and versions of plugins, their errors, what a user typed, what a file holds."""


def printable(text: object) -> str:
    """The text with everything that is not a visible character or a space written as an escape.

    So nothing in it moves the cursor, colours the terminal, turns the direction of writing or starts a new line.

    Example:
        >>> printable("mezo\\x1b[2J")
        'mezo\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
