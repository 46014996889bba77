"""Images and where they come from: files, folders, data sets, class names."""
