"""The part of the embedded AWS that plays Lambda: deployed zips under the real runtime API."""
