"""Back-catalogues: every image of a folder, table or archive judged once, here or on a Ray cluster; candidates shadowed."""
