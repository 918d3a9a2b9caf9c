"""Judges that are served elsewhere, as reward models here."""
