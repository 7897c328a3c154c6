"""What the app in app.py shows: models, images and results of a visitor, and the viewer. Without Streamlit."""
