"""What a site's data are like before it joins: it tells and changes nothing."""

from client.check.report import Checked, check

__all__ = ["Checked", "check"]
