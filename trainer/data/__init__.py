"""Problems to train and evaluate on."""
