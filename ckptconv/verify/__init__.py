"""Prove a conversion: from metadata, byte by byte, and by a certificate that can be checked later."""
