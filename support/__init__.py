"""What every script shares and no equation needs: options, files, pictures."""
