"""Find the heart in a study: cavity, myocardium, RV and the RV insertion points."""
