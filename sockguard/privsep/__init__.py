"""What sockguard's processes share: the messages between them, the channel, and how a process gives up its rights."""
