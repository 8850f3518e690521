"""Import this before jsonschema, which reads the grammar of addresses if it can: a second in every process, unused."""

import sys

sys.modules.setdefault("rfc3987_syntax", None)
