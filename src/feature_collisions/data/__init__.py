"""Images and their sources: files, folders, data sets, class names."""
