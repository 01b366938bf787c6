"""Problems for training and evaluation."""
