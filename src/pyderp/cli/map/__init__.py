"""`pyderp map`: DERP maps shown, checked, compared, made and converted."""
