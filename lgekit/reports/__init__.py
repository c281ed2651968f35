"""Write reports from findings, read findings from reports, and make training texts from both."""
